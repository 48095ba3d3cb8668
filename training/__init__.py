"""How the mini models were made: the world they know, their training, their judges."""
