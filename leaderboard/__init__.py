"""The leaderboard: records that can be checked, and the page that is built from them."""
