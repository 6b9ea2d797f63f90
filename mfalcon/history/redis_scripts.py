"""The scripts of the event log in Redis. Each is atomic: nothing else happens to a log while one runs.

They read the log's header (`redis_header.py`) by its offsets: format at 4, flags at 6, base at 8, length at 16,
generation at 24, and 112 bytes in all, or 80 in format 1. An event is 24 bytes. Beside the log is a hash of what became
of its last appends: `of` is the generation of the log that they were written to, `num` how many there have been; `s0`,
`s1`, ... name the newest ones by the hashes of their ids, under which are their records (`append_ids.py`).
"""

WRITTEN = -3

GUARD = """
local size = redis.pcall('STRLEN', KEYS[1])
if type(size) == 'table' then return {'', -2, 'type'} end
local header, head = redis.call('GETRANGE', KEYS[1], 0, 111), 112
if string.byte(header, 5) == 1 then header, head = string.sub(header, 1, 80), 80 end
local told = -1
if #header == head and string.sub(header, 1, 4) == 'MFLG' then
  local base, len = struct.unpack('<I8I8', header, 9)
  told = head + (len - base) * 24
  if base > len or size < told then return {header, -2, 'truncated'} end
end
if size > tonumber(ARGV[#ARGV]) and (size ~= told or size > 33554432) then return {header, -2, 'size'} end
if size > 0 and told == -1 then return {header, -2, 'header'} end
"""
"""KEYS: log. The last of ARGV: the most bytes that a log has. What is no log of a reasonable size does not leave Redis:
then the reply is what there is of a header, -2, and the reason. A log that is longer than that and in itself right is
of a server that keeps more, up to 32 MiB, which is more than any keeps: it is sent, and the next append cuts it.
Whatever comes after it finds `header`, and in `head` how many bytes that should have.
"""

READ = """
if header == ARGV[1] then return {header, -1, ''} end
if #header ~= head then return {header, 0, ''} end
local base, len = struct.unpack('<I8I8', header, 9)
local from, known_len = base, tonumber(ARGV[3])
if string.sub(header, 25, 32) == ARGV[2] and known_len >= base and known_len <= len then from = known_len end
if from == len then return {header, from, ''} end
return {header, from, redis.call('GETRANGE', KEYS[1], head + (from - base) * 24, head - 1 + (len - base) * 24)}
"""
"""After GUARD. ARGV: known header, its generation and length. Returns header, first event sent (-1: as known), and the
events.
"""

APPEND = f"""
local after, content, offset = ARGV[4], ARGV[5], ARGV[6]
local ttl, most, writer, wants_turn, num_asked = ARGV[7], tonumber(ARGV[8]), ARGV[9], ARGV[10], tonumber(ARGV[11])
local first_record, num_records = 12 + num_asked, (#ARGV - 12 - num_asked) / 2

local function remember()
  local last = tonumber(redis.call('HGET', KEYS[2], 'num') or '')
  if not (last and last >= 0 and last < 9007199254740992 - num_records) then last = 0 end
  last = last + num_records
  local slots, fields = {{}}, {{'num', string.format('%.0f', last)}}
  for i = 1, num_records do
    local id, record = ARGV[first_record + 2 * i - 2], ARGV[first_record + 2 * i - 1]
    slots[i] = 's' .. ((last - num_records + i) % most)
    for _, word in ipairs({{slots[i], id, id, record}}) do fields[#fields + 1] = word end
  end
  for _, oldest in ipairs(redis.call('HMGET', KEYS[2], unpack(slots))) do
    if oldest then redis.call('HDEL', KEYS[2], oldest) end
  end
  redis.call('HSET', KEYS[2], unpack(fields))
  redis.call('EXPIRE', KEYS[2], ttl)
end

local function read()
{READ}
end

local of, found, is_any_found = nil, {{}}, false
local turn = redis.pcall('GET', KEYS[3])
local is_turn = type(turn) == 'string' and redis.call('PTTL', KEYS[3]) >= 0
if turn and not is_turn then redis.call('UNLINK', KEYS[3]) end
local is_others = is_turn and turn ~= writer
if num_asked > 0 then
  found = redis.pcall('HMGET', KEYS[2], 'of', unpack(ARGV, 12, 11 + num_asked))
  of = not found.err and table.remove(found, 1)
  if of and #header == head and of == string.sub(header, 25, 32) then
    for i = 1, num_asked do is_any_found = is_any_found or found[i] end
  else
    found = {{}}
  end
end
if is_any_found then
  redis.call('EXPIRE', KEYS[2], ttl)
elseif after ~= '' and header == ARGV[1] and not is_others then
  if offset == '0' then
    redis.call('SET', KEYS[1], after .. content)
  else
    redis.call('SETRANGE', KEYS[1], offset, content)
    redis.call('SETRANGE', KEYS[1], 0, after)
  end
  if turn == writer then redis.call('UNLINK', KEYS[3]) end
  if num_records > 0 then
    local generation = string.sub(after, 25, 32)
    if of ~= generation then
      redis.call('UNLINK', KEYS[2])
      redis.call('HSET', KEYS[2], 'of', generation)
    end
    remember()
  end
  return {{after, {WRITTEN}, '', found}}
end
if wants_turn ~= '0' and after ~= '' and not is_others then redis.call('SET', KEYS[3], writer, 'PX', wants_turn) end
local reply = read()
reply[4] = found
return reply
"""
"""After GUARD. KEYS: log, what became of its last appends, whose turn it is. ARGV, besides READ's: the header after, or
nothing to write nothing; the events to write, and their offset, 0 if they are the whole log, as they must be where
there was none, or its tombstone, which expires; for how many seconds and how many appends are remembered; the name of
the writer; for how many ms it shall be its turn if it cannot write now, 0 not to ask for that; the number of ids asked
for; these; ids and records of what is written, in turns.

Returns what READ does, or WRITTEN in place of the first event sent; and the records of the ids asked for. It writes
nothing if any of them has one, if it finds another header, or while it is the turn of another writer. The header is
written last: what lies behind the length it states is not part of the log. A record found is written again, its time,
so that WAIT has what to wait for. Nothing fails behind the first write, whatever lies in the other two keys: what a
script has written stays written when it fails.
"""

QUARANTINE = """
local kind, header = redis.call('TYPE', KEYS[1]).ok, ''
if kind == 'none' then return 0 end
if kind == 'string' then header = redis.call('GETRANGE', KEYS[1], 0, 111) end
if (kind == 'string') ~= (ARGV[1] == 'string') or string.sub(header, 1, #ARGV[2]) ~= ARGV[2] then return 0 end
local at = 2
while at < #KEYS and redis.call('EXISTS', KEYS[at]) == 1 do at = at + 1 end
redis.call('UNLINK', KEYS[at])
redis.call('RENAME', KEYS[1], KEYS[at])
redis.call('PEXPIRE', KEYS[at], ARGV[3])
return at - 1
"""
"""KEYS: log, the places to put it. ARGV: `string` or another type, and the header, as they were found to be no log; ms
to live. It goes to the first free place, to the last one where none is free. Returns the number of the place, the first
is 1, or 0, with nothing moved, if something else is there by now.
"""

EXPIRE = """
if redis.call('TYPE', KEYS[1]).ok ~= 'string' then return 0 end
if redis.call('GETRANGE', KEYS[1], 0, #ARGV[1] - 1) ~= ARGV[1] then return 0 end
redis.call('UNLINK', unpack(KEYS))
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1
"""
"""KEYS: log, and what else there may be of its user. ARGV: the header that was found to be old, the tombstone to leave,
ms that it lives. Returns 0, and deletes nothing, if the header is another one by now.
"""

DELETE = """
local kind, header = redis.call('TYPE', KEYS[1]).ok, ''
if kind == 'string' then header = redis.call('GETRANGE', KEYS[1], 0, 111) end
local is_log = #header >= 80 and string.sub(header, 1, 4) == 'MFLG'
local is_tombstone = is_log and #header == 112 and string.byte(header, 5) == 2 and string.byte(header, 7) % 2 == 1
is_log, is_tombstone = is_log and header ~= ARGV[4], is_tombstone and header ~= ARGV[4]
if is_log and not is_tombstone and string.sub(header, 25, 32) ~= ARGV[1] then return {0, header} end
redis.call('UNLINK', unpack(KEYS))
if is_tombstone then
  redis.call('SET', KEYS[1], header, 'PX', ARGV[3])
else
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
end
return {1, is_tombstone and header or ARGV[2]}
"""
"""KEYS: log, and what else there may be of its user. ARGV: the generation to end, the tombstone to leave, ms that it
lives; a header that was found to be no tombstone of this user, which goes as what is no log does. Returns 0 and the
header that it found if that is of another life: a deletion that was held up on its way can so not end a life that began
after it was given up and repeated. Returns 1 and the tombstone, that of an earlier deletion if there is one. What is no
log, whatever type it has, goes without being asked for its generation.
"""
