"""`cifarserve tune`: the settings with which this machine serves a model best, found by measuring.

`engines` times the engine alone (in `engine_process`), `candidates` says what is worth trying after that, `trial`
starts the whole server with a candidate and drives it with the load test, `race` decides who is measured how long,
`verdict` whether a gain is more than noise; `files` writes the settings, `page` draws it all, `flags` and `command`
are the command line.
"""
