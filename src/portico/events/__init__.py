"""Events: workshops with seats made ahead. What an organiser decides and a participant gets; knows no HTTP."""
