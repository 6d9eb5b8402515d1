"""How clients send commands and subscribe with few round trips and few connections."""
