"""The scripts of the event log in Redis. Each is atomic: nothing else happens to a log while one runs.

They read the log's header (`redis_header.py`) by its offsets: base at 8, length at 16, generation at 24, and 80 bytes
in all; an event is 24 bytes.
"""

READ = """
local known, known_generation, known_len = ARGV[1], ARGV[2], tonumber(ARGV[3])
local header = redis.call('GETRANGE', KEYS[1], 0, 79)
if header == known then return {header, -1, ''} end
if #header ~= 80 then return {header, 0, ''} end
local base, len = struct.unpack('<I8I8', header, 9)
local from = base
if string.sub(header, 25, 32) == known_generation and known_len >= base and known_len <= len then from = known_len end
if from == len then return {header, from, ''} end
return {header, from, redis.call('GETRANGE', KEYS[1], 80 + (from - base) * 24, 79 + (len - base) * 24)}
"""
"""KEYS: log. ARGV: known header, its generation and length. Returns header, first event sent (-1: as known), events."""

APPEND = """
if redis.call('GETRANGE', KEYS[1], 0, 79) == ARGV[1] then
  if ARGV[6] == '0' then
    redis.call('SET', KEYS[1], ARGV[4] .. ARGV[5])
  else
    redis.call('SETRANGE', KEYS[1], ARGV[6], ARGV[5])
    redis.call('SETRANGE', KEYS[1], 0, ARGV[4])
  end
  return {ARGV[4], -1, ''}
end
"""
"""ARGV, besides READ's: the header after, events, and the offset to write them at, 0 if they are the whole log. The
header is written last: what lies behind the length it states is not part of the log. A writer who finds another header
gets what READ gives.
"""

DELETE = """
local generation = redis.call('GETRANGE', KEYS[1], 24, 31)
if #generation < 8 then generation = '' end
if generation == ARGV[1] or generation == '' then redis.call('UNLINK', KEYS[1]) end
return generation
"""
"""KEYS: log. ARGV: the generation to end. Returns the one that was found. A deletion that was held up on its way can so
not end a life that began after it was given up and repeated.
"""
