"""Turns what CI runs leave behind into one truthful report and a history that can be asked."""
