"""The pages on which people rate, and the API behind them.

It knows a run's folder and store; it trains nothing and imports no torch until somebody talks to the model. Training
is another process: the store is their only channel.
"""
