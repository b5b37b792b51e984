"""What a run tells: progress, cards, run folders."""
