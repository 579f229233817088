"""What lies between the socket and a route."""
