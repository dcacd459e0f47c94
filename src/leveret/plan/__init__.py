"""The verb that says what a recipe will take before it runs: parameters, arithmetic, memory, time and money."""
