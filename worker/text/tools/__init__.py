"""What the text of an answer is: reasoning, calls of tools in the form that the model's chat template asks for, text."""
