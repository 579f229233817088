"""The words of the service: what other services install and import (see contracts/ first)."""
