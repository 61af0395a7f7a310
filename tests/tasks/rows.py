"""Files of rows."""

import json


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
