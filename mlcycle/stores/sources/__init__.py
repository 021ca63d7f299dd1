"""Reading rows from files, databases, web APIs and joins of them."""
