"""Servers on loopback that play the services we talk to, and can fail on command."""
