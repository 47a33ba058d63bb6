"""What a study says: leaderboard, verdict, claims, plots."""
