"""Scanners of the firewall: each judges one message by one means."""
