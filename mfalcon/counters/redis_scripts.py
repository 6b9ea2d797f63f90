"""The scripts that change item counters in Redis, each of which is one step: all of it is done, or nothing.

KEYS of both: state, items, stream, the user's record, the tombstone of the life in ARGV[1]. An item's numbers are 24
bytes, int64 [3]; their field is the item id, int64. A record has an item's as 16 bytes, and in `head` the generation,
how many events are counted, and the link of their history there. Lua's numbers are doubles, so values are added in two
halves, with a carry.
"""

_CHANGE = """
local HALF = 4294967296
local function change(ids, deltas, sign, max_items, epoch, max_len)
  local olds, set, unset, told, taken = {}, {}, {}, {}, {}
  if #ids > 0 then olds = redis.call('HMGET', KEYS[2], unpack(ids)) end
  local room, left_out = max_items - redis.call('HLEN', KEYS[2]), 0
  for i, id in ipairs(ids) do
    local events, likes, low, high = 0, 0, 0, 0
    local fits = true
    if olds[i] then
      events, likes, low, high = struct.unpack('<I8I8I4i4', olds[i])
    elseif room > 0 then
      room = room - 1
    else
      fits = false
    end
    if fits then
      local d = deltas[i]
      events, likes, low = events + sign * d[1], likes + sign * d[2], low + sign * d[3]
      local carry = math.floor(low / HALF)
      low, high = low - carry * HALF, high + sign * d[4] + carry
      local new = struct.pack('<I8I8I4i4', events, likes, low, high)
      if events == 0 and likes == 0 and low == 0 and high == 0 then
        unset[#unset + 1] = id
      else
        set[#set + 1] = id
        set[#set + 1] = new
      end
      told[#told + 1] = id .. new
      taken[#taken + 1] = i
    else
      left_out = left_out + 1
    end
  end
  local known = redis.call('HGET', KEYS[1], 'epoch')
  if not known then
    redis.call('HSET', KEYS[1], 'epoch', epoch)
    redis.call('UNLINK', KEYS[3])
    known = epoch
  end
  local version, payload = tonumber(redis.call('HGET', KEYS[1], 'version') or '0'), table.concat(told)
  if #told > 0 then
    if #set > 0 then redis.call('HSET', KEYS[2], unpack(set)) end
    if #unset > 0 then redis.call('HDEL', KEYS[2], unpack(unset)) end
    version = redis.call('HINCRBY', KEYS[1], 'version', 1)
    redis.call('XADD', KEYS[3], 'MAXLEN', '~', max_len, string.format('%.0f-1', version), 'items', payload)
  end
  return known, version, payload, taken, left_out
end
"""

COUNT = (
    _CHANGE
    + """
if redis.call('EXISTS', KEYS[5]) == 1 then return {'gone'} end
local head = redis.call('HGET', KEYS[4], 'head')
local counted, link = 0, ''
if head then
  if string.sub(head, 1, 8) ~= ARGV[1] then return {'other', string.sub(head, 1, 8)} end
  counted, link = struct.unpack('<I8', head, 9), string.sub(head, 17)
end
if counted ~= tonumber(ARGV[2]) or link ~= ARGV[3] then return {'at', counted, link} end
local is_whole = ARGV[6] == 'whole'
local ids, deltas = {}, {}
for at = 1, #ARGV[7], 24 do
  ids[#ids + 1] = string.sub(ARGV[7], at, at + 7)
  deltas[#deltas + 1] = {struct.unpack('<I4I4I4i4', ARGV[7], at + 8)}
end
local theirs = {}
if #ids > 0 then
  for i, raw in ipairs(redis.call('HMGET', KEYS[4], unpack(ids))) do
    theirs[i] = {0, 0, 0, 0}
    if raw then theirs[i] = {struct.unpack('<I4I4I4i4', raw)} end
    if is_whole then
      for part = 1, 4 do deltas[i][part] = deltas[i][part] - theirs[i][part] end
    end
  end
end
local epoch, version, payload, taken, left_out = change(ids, deltas, 1, tonumber(ARGV[8]), ARGV[9], ARGV[10])
local record, gone = {'head', ARGV[1] .. struct.pack('<I8', tonumber(ARGV[4])) .. ARGV[5]}, {}
for _, i in ipairs(taken) do
  local d, old = deltas[i], theirs[i]
  local events, likes, low, high = d[1] + old[1], d[2] + old[2], d[3] + old[3], d[4] + old[4]
  local carry = math.floor(low / HALF)
  low, high = low - carry * HALF, high + carry
  if events == 0 then
    gone[#gone + 1] = ids[i]
  else
    record[#record + 1] = ids[i]
    record[#record + 1] = struct.pack('<I4I4I4i4', events, likes, low, high)
  end
end
redis.call('HSET', KEYS[4], unpack(record))
if #gone > 0 then redis.call('HDEL', KEYS[4], unpack(gone)) end
return {'done', epoch, version, payload, left_out}
"""
)
"""ARGV: generation, events counted before and their link, events counted after and their link, `more` or `whole`,
numbers of items, the most items, an epoch should there be none, entries of the stream. The numbers are what is added,
or with `whole` all that the record shall say of those items. Nothing is done unless the record stands at exactly
(generation, counted before, link). Returns `done` with what `change` gives; `at` and where the record stands; `other`
and the generation of the record; `gone` if that life has ended.
"""

FORGET = (
    _CHANGE
    + """
redis.call('SET', KEYS[5], '', 'EX', ARGV[2])
local kind = redis.call('TYPE', KEYS[4]).ok
if kind ~= 'hash' and kind ~= 'none' then redis.call('UNLINK', KEYS[4]) end
local head = redis.call('HGET', KEYS[4], 'head')
if not head or string.sub(head, 1, 8) ~= ARGV[1] then return {'none'} end
local ids, deltas = {}, {}
for _, field in ipairs(redis.call('HRANDFIELD', KEYS[4], ARGV[3])) do
  if field ~= 'head' then ids[#ids + 1] = field end
end
if #ids > 0 then
  for i, raw in ipairs(redis.call('HMGET', KEYS[4], unpack(ids))) do
    deltas[i] = {struct.unpack('<I4I4I4i4', raw)}
  end
end
local epoch, version, payload = change(ids, deltas, -1, 0, ARGV[4], ARGV[5])
if #ids > 0 then redis.call('HDEL', KEYS[4], unpack(ids)) end
local left = redis.call('HLEN', KEYS[4]) - 1
if left == 0 then redis.call('UNLINK', KEYS[4]) end
return {left == 0 and 'done' or 'more', epoch, version, payload}
"""
)
"""ARGV: generation, seconds that its tombstone lives, the most items of this step, epoch, entries of the stream. Takes
out some items of a record; `more` says that others are left, `none` that there is no record of that life. What is no
record at all, whoever put it there, goes.
"""

FOLLOW = """
local state = redis.call('HMGET', KEYS[1], 'epoch', 'version')
local from = '(' .. ARGV[1] .. '-1'
return {state[1] or '', tonumber(state[2] or '0'), redis.call('XRANGE', KEYS[2], from, '+', 'COUNT', ARGV[2])}
"""
"""KEYS: state, stream. ARGV: a version, the most entries. Returns epoch, version and the entries after that version."""
