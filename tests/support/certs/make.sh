#!/bin/sh
# Makes the certificates of this folder again (OpenSSL 3). They are for tests on the loopback interface only:
# their private keys are public. Each server file holds a certificate and its key.
#
#   ca.pem           the authority that the tests trust; its own key is thrown away
#   valid.pem        localhost and 127.0.0.1, until 2126
#   expired.pem      the same names, ended on 2020-01-02
#   wrong-host.pem   another.example, until 2126
#   self-signed.pem  localhost and 127.0.0.1, until 2126, signed by nobody else
set -eu
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cat > "$work/ca.cnf" <<CONF
[ca]
default_ca = test
[test]
database = $work/index.txt
new_certs_dir = $work
rand_serial = yes
default_md = sha256
policy = anything
unique_subject = no
[anything]
commonName = supplied
CONF
: > "$work/index.txt"

key() { openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt -out "$1"; }

sign() { # name, start, end, and how openssl ca signs; takes $work/name.csr and .ext, makes $work/name.crt
  name=$1 start=$2 end=$3
  shift 3
  openssl ca -batch -notext -config "$work/ca.cnf" -in "$work/$name.csr" -extfile "$work/$name.ext" \
    -startdate "$start" -enddate "$end" -out "$work/$name.crt" "$@"
}

key "$work/ca.key"
openssl req -new -key "$work/ca.key" -subj "/CN=chatjobs test authority" -out "$work/ca.csr"
cat > "$work/ca.ext" <<EXT
basicConstraints=critical,CA:TRUE
keyUsage=critical,keyCertSign,cRLSign
subjectKeyIdentifier=hash
EXT
sign ca 20200101000000Z 21260101000000Z -selfsign -keyfile "$work/ca.key"
cp "$work/ca.crt" ca.pem

server() { # name, host names, start, end, and how openssl ca signs
  name=$1
  key "$work/$name.key"
  openssl req -new -key "$work/$name.key" -subj "/CN=chatjobs test receiver" -out "$work/$name.csr"
  cat > "$work/$name.ext" <<EXT
basicConstraints=critical,CA:FALSE
keyUsage=critical,digitalSignature
extendedKeyUsage=serverAuth
subjectKeyIdentifier=hash
authorityKeyIdentifier=keyid
subjectAltName=$2
EXT
  start=$3 end=$4
  shift 4
  sign "$name" "$start" "$end" "$@"
  cat "$work/$name.crt" "$work/$name.key" > "$name.pem"
}

here="DNS:localhost,IP:127.0.0.1"
server valid "$here" 20200101000000Z 21260101000000Z -cert ca.pem -keyfile "$work/ca.key"
server expired "$here" 20200101000000Z 20200102000000Z -cert ca.pem -keyfile "$work/ca.key"
server wrong-host "DNS:another.example" 20200101000000Z 21260101000000Z -cert ca.pem -keyfile "$work/ca.key"
server self-signed "$here" 20200101000000Z 21260101000000Z -selfsign -keyfile "$work/self-signed.key"
