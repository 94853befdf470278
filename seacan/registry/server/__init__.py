"""A registry of our own: the OCI distribution specification 1.1, over the same blobs the engine keeps.

``store`` knows what repositories hold and keeps it consistent; ``application`` speaks HTTP and decides nothing;
``auth`` says who may do what.
"""
