"""Dataset adapters, one module for each published form. Each is a class with the interface `Adapter` of base.py."""
