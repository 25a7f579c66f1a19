"""The online side of cifarserve: everything that answers requests. It never imports torch."""
