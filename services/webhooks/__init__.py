"""Events of the log, sent to addresses that users name.

The log is the outbox: `making` reads it and makes deliveries, in one transaction with the position
that each webhook has come to; `deliverer` sends what is due, and `outcomes` writes what came of it.
"""
