"""Which runs are made, and what they said: studies, the driver, the leaderboard."""
