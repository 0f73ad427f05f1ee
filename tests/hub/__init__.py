"""A loopback double of the Hub's HTTP API, and what the library does with it."""
