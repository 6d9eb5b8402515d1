"""What of an answer is reasoning, and what are calls of tools, in the form that the model's chat template asks for."""
