"""The Dockerfile language: words, lines, instructions, checks, and its translation into a build graph."""
