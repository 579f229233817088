"""Everything between the socket and a route: protocol, middleware, bodies, streams."""
