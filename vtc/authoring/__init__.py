"""A method of one's own: `action=new_method` writes a working one, with its test."""

from vtc.authoring.new_method import new_method, rendered

__all__ = ["new_method", "rendered"]
