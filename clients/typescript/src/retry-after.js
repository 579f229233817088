// The response header `Retry-After`: seconds or a date (RFC 9110, section 10.2.3).

const MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
const CLOCK = "(\\d{1,2}):(\\d\\d):(\\d\\d)";
// RFC 9110, section 5.6.7: IMF-fixdate (also with a zone in digits), RFC 850, asctime.
const DATED = new RegExp(`^(?:[A-Za-z]+, *)?(\\d{1,2})[ -]([A-Z][a-z]{2})[ -](\\d{4}|\\d\\d) ${CLOCK} (GMT|UTC|[+-]\\d{4})$`);
const ASCTIME = new RegExp(`^[A-Z][a-z]{2} ([A-Z][a-z]{2}) {1,2}(\\d{1,2}) ${CLOCK} (\\d{4})$`);

/**
 * Milliseconds to wait, at least 0, finite but not clamped; null if the header is missing or unusable.
 *
 * A date counts from the response's own `Date`, because this machine's clock may differ from the server's; without
 * one, from `here` (milliseconds since 1970). A past date gives 0.
 * @param {Headers} headers
 * @param {number} here
 * @returns {number | null}
 */
export function retryAfter(headers, here) {
  const value = (headers.get("retry-after") ?? "").trim();
  if (/^[0-9]+(\.[0-9]+)?$/.test(value)) {
    const ms = Number(value) * 1000;
    return Number.isFinite(ms) ? ms : null;
  }
  const until = httpDate(value);
  if (until === null) return null;
  return Math.max(0, until - (httpDate((headers.get("date") ?? "").trim()) ?? here));
}

/**
 * The time in a header's value, in milliseconds since 1970; null if it is none.
 * @param {string} value
 * @returns {number | null}
 */
function httpDate(value) {
  const dated = DATED.exec(value);
  if (dated) {
    const [, day, month, year, hour, minute, second, zone] = dated;
    return moment(year, month, day, hour, minute, second, zone);
  }
  const asctime = ASCTIME.exec(value);
  if (!asctime) return null;
  const [, month, day, hour, minute, second, year] = asctime;
  return moment(year, month, day, hour, minute, second, "GMT");
}

/**
 * @param {string} year
 * @param {string} month
 * @param {string} day
 * @param {string} hour
 * @param {string} minute
 * @param {string} second
 * @param {string} zone
 */
function moment(year, month, day, hour, minute, second, zone) {
  const number = MONTHS.indexOf(month);
  const full = year.length === 4 ? Number(year) : Number(year) + (Number(year) < 69 ? 2000 : 1900);
  const parts = [Number(day), Number(hour), Number(minute), Number(second)];
  const found = new Date(Date.UTC(full, number, parts[0], parts[1], parts[2], parts[3]));
  const same = found.getUTCMonth() === number && found.getUTCDate() === parts[0] && found.getUTCHours() === parts[1];
  if (number < 0 || !same || parts[2] > 59 || parts[3] > 59) return null;
  const [, sign, hours, minutes] = /^([+-])(\d\d)(\d\d)$/.exec(zone) ?? [null, "+", "0", "0"];
  return found.getTime() - Number(`${sign}1`) * (Number(hours) * 60 + Number(minutes)) * 60_000;
}
