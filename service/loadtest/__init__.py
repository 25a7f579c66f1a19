"""`cifarserve loadtest`: how many images a second a server answers, and how long each waits.

`plan` says what to send, `driver` sends it in processes of its own, `measure` runs them and adds up what they saw,
`report` draws it, `flags` and `command` are the command line.
"""
