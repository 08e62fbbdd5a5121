"""Puzzles that others made, as their files have them, turned into ours.

Each module is a format, a notation of boards in text, with the same two functions:

    levels(text) -> list[Level]      the boards of a file
    puzzle_of(level) -> Puzzle       one of them under our rules, with a solution: the file's own where that is one by our
                                     rules, else the planner's. ValueError, in one line, for what is no puzzle here
"""
