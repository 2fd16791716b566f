"""Language models behind one door: the protocol, endpoints over HTTP, the circuit breaker and the response cache."""
