def add_parsers(commands):
    pass


def look_command(o):
    return 0
