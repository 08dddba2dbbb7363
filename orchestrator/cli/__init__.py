"""The command line: a client of the API, and what starts and stops the processes of an installation.

Whatever is slow to import is imported by the command that needs it.
"""
