-- wrk: POST bodies in turn. BODIES is a file of them, one after another, SIZE bytes each; SIZE 0: one a line.
-- PATH_, TYPE: the request's path and content type. Prints one line of JSON at the end.
local bodies = {}
local size = tonumber(os.getenv("SIZE"))
local file = assert(io.open(os.getenv("BODIES"), "rb"))
if size == 0 then
  for line in file:lines() do bodies[#bodies + 1] = line end
else
  while true do
    local body = file:read(size)
    if not body then break end
    bodies[#bodies + 1] = body
  end
end
file:close()

local requests = {}
local at = 0

function init()
  for i, body in ipairs(bodies) do
    requests[i] = wrk.format("POST", os.getenv("PATH_"), { ["Content-Type"] = os.getenv("TYPE") }, body)
  end
end

function request()
  at = at % #requests + 1
  return requests[at]
end

function done(summary, latency)
  local e = summary.errors
  io.write(string.format(
    '{"requests":%d,"seconds":%.3f,"p50_ms":%.3f,"p99_ms":%.3f,"max_ms":%.3f,"bad_status":%d,"broken":%d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    latency.max / 1e3, e.status, e.connect + e.read + e.write + e.timeout))
end
