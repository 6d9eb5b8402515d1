"""The engine process as dispatch sees it: started, spoken to, restarted after it died; who may be in it then."""
