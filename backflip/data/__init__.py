"""Other people's data: preferences, thumbs, demonstrations and prompts, from files and the Hub.

Reads and checks; knows no model, no run and no store.
"""

from backflip.data.records import Demonstration, Form, Messages, Preference, Request, Thumb
from backflip.data.table import Table, read_table

__all__ = ["Demonstration", "Form", "Messages", "Preference", "Request", "Table", "Thumb", "read_table"]
