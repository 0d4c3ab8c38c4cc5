"""What a run was: recorded while it goes on, told as numbers, advice and one page for people."""
