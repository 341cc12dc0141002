"""Stored results held against a reference: `meddaemon evaluate`.

    files of the reference ──readers──▶ what it says of which case ─┐
                                                                    ├─cases─▶ pairs ─▶ classification ─┐
    results of the database, current ones only ─────────────────────┘              ├─▶ segmentation  ──┼─▶ report
                                                                                   └─▶ detection     ──┘

A number that cannot be told is null with a reason, and a case that cannot be compared is listed with one: nothing is
dropped and nothing is 0 or 1 by accident.
"""
