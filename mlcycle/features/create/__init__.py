"""Feature creation: dates, arithmetic, history of entities, functions of the user."""
