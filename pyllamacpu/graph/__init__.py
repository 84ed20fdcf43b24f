"""From model code to the plan: the recorder, its passes, and the C form."""
