"""From the messages of a request to the text of its prompt, with the chat template of `worker.text.chat_template`."""
