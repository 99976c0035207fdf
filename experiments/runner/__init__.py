"""Run many jobs: plan them, estimate their time, share them among processes, show how they go."""
