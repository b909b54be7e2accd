"""Searches: settings of each arm that are drawn, tried and chosen before the arm's targets are trained."""
