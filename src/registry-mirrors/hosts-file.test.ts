import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Code, CriError } from '../errors/cri-error.ts'
import { parseHostsFile } from './hosts-file.ts'

const file = '/etc/certs.d/reg.example/hosts.toml'

test('every field, at the root and under a host', () => {
  const parsed = parseHostsFile(`
server = "https://reg.example:8443/base" # the fallback
capabilities = ["pull", "Resolve"]
ca = "ca.crt"
client = [["one.cert", "one.key"], ["/abs/two.pem", ""]]
skip_verify = true
dial_timeout = "1m30s"
[header]
  x-root = "1"

["host".'https://a.example/v2/proxy']
  override_path = true
  ca = ["x.crt", "/abs/y.crt"]
  client = "both.pem"
  dial_timeout = "1.5s"
  [host."https://a.example/v2/proxy".header]
    Authorization = "Basic c2VjcmV0"
    x-many = ["1", "2"]
[host."http://10.0.0.1:5000"]
  client = ["p.pem", "q.pem"]
[host."b.example"]
`, file)
  assert.deepEqual(parsed.warnings, [])
  assert.deepEqual(parsed.hosts.map(({ address, line }) => [address.protocol, address.host, address.path, line]), [
    ['https', 'a.example', '/v2/proxy', 11], ['http', '10.0.0.1:5000', '', 19], ['https', 'b.example', '', 21],
  ])
  const [a, b, c] = parsed.hosts
  assert.deepEqual(a?.tls, { caFiles: ['/etc/certs.d/reg.example/x.crt', '/abs/y.crt'], clientPairs: [{ certFile: '/etc/certs.d/reg.example/both.pem' }], skipVerify: false })
  assert.deepEqual([a?.overridePath, a?.dialTimeoutMs, a?.headers], [true, 1500, { Authorization: ['Basic c2VjcmV0'], 'x-many': ['1', '2'] }])
  assert.deepEqual(b?.tls?.clientPairs, [{ certFile: '/etc/certs.d/reg.example/p.pem' }, { certFile: '/etc/certs.d/reg.example/q.pem' }])
  assert.deepEqual([c?.tls, c?.capabilities, c?.overridePath], [undefined, undefined, false])
  assert.deepEqual(parsed.server?.address, { protocol: 'https', host: 'reg.example:8443', path: '/base', hasCredentials: false })
  assert.deepEqual([parsed.server?.capabilities, parsed.server?.dialTimeoutMs, parsed.server?.headers], [['pull', 'resolve'], 90_000, { 'x-root': ['1'] }])
  assert.deepEqual(parsed.server?.tls, {
    caFiles: ['/etc/certs.d/reg.example/ca.crt'], skipVerify: true,
    clientPairs: [{ certFile: '/etc/certs.d/reg.example/one.cert', keyFile: '/etc/certs.d/reg.example/one.key' }, { certFile: '/abs/two.pem' }],
  })
})

test('the order of the file counts, whatever the keys look like', () => {
  const parsed = parseHostsFile(`
[host.20.header]
a = "1"
[other]
b = """
[host."https://not-a-host"]
"""
c = [ # ]
  "[host.'https://neither']",
]
[host.10]
[host."https://c"] # [host."https://comment"]
[host.20]
`, file)
  assert.deepEqual(parsed.hosts.map((host) => host.address.host), ['20', '10', 'c'])
})

test('a broken file names file, line and remedy', () => {
  const cases: readonly (readonly [string, number, RegExp])[] = [
    ['server = "x"\n[host."https://a"\nfoo = 1', 2, /not valid TOML/],
    ['# c\n[host."https://a]\nca = "x"', 2, /a string that begins in this line has no closing quote$/],
    ['server = "https://a\r\n[host."https://b"]\r\n', 1, /no closing quote$/],
    ["ca = 'x", 1, /no closing quote$/],
    ['ca = "a\u0001b"', 1, /control characters/],
    ['server = 1', 1, /must be a string/],
    ['# c\nserver = "ftp://x"', 2, /scheme "ftp" is not supported/],
    ['[host."https://a"]\ncapabilities = ["pull", "resolv"]', 2, /unknown capability "resolv"/],
    ['[host."https://a"]\ncapabilities = "pull"', 2, /must be an array/],
    ['[host."https://a"]\n\nskip_verify = "true"', 3, /without quotes/],
    ['[host."https://a"]\ndial_timeout = 5', 2, /duration in quotes/],
    ['[host."https://a"]\ndial_timeout = "5"', 2, /duration in quotes/],
    ['[host."https://a"]\nca = 1', 2, /path or an array/],
    ['[host."https://a"]\nca = ""', 2, /ca names no file/],
    ['[host."https://a"]\nca = ["x", ""]', 2, /ca names no file/],
    ['[host."https://a"]\nclient = ""', 2, /client names no file/],
    ['[host."https://a"]\nclient = [["", "k"]]', 2, /client names no file/],
    ['[host."https://fd00::1"]', 1, /IPv6 address is written in brackets: https:\/\/\[fd00::1\]/],
    ['server = "fd7c:53a5:aef5::242:ac11:7"', 1, /IPv6 address is written in brackets/],
    ['[host."https://a"]\nclient = [["a", "b", "c"]]', 2, /pairs/],
    ['[host."https://a"]\n[host."https://a".header]\nx = 1', 3, /header "x" must be/],
    ['[host."https://a".header]\nx = "secret\\r\\ninjected: 1"', 2, /header "x" has a character/],
    ['[host."https://a".header]\n"x y" = "1"', 2, /not a header name/],
    ['[[host]]\nurl = "x"', 1, /written \[host\."https/],
    ['[host]\n"https://a" = true', 2, /not a table/],
    ['[host]\n"user:secret@a" = true', 2, /"a" under \[host\] is not a table/],
    ['server = "ftp://user:x@secret@b"', 1, /server "ftp:\/\/b": scheme "ftp"/],
    [`${'a.'.repeat(5000)}b = 1`, 1, /nested too deep/],
    [`server = "https://x"\n[${'a.'.repeat(5000)}b]`, 2, /nested too deep/],
    [`# ${'x'.repeat(300_000)}`, 1, /is this the right file/],
    ['server = "https://good\\\\evil"', 1, /not a URL/],
    ['[host."ht\\ntp s"]', 1, /host "ht tp s": it is not a URL/],
    ['[host."https:///mirror.example"]', 1, /not a URL|no host name/],
    ['[host."https://"]', 1, /not a URL|no host name/],
    ['server = "https//a"', 1, /server "https\/\/a": https:\/\/ is misspelt$/],
    ['server = "http:/a"', 1, /http:\/\/ is misspelt$/],
    ['server = "https://a:99999"', 1, /99999 is not a port$/],
    ['server = "https://[fe80::1%25eth0]:5000"', 1, /zone \(%eth0\) is not supported/],
    ['[host.“https://a”]', 1, /not valid TOML: .*\(typographic quotes: write "\)$/],
    ['server: https://a', 1, /\(this looks like YAML: write key = "value"\)$/],
    ['{"server": "https://a"}', 1, /\(this looks like JSON: /],
    ['server = https://a', 1, /\(text needs quotes: key = "value"\)$/],
  ]
  for (const [text, line, why] of cases) {
    assert.throws(() => parseHostsFile(text, file), (error) => {
      assert.ok(error instanceof CriError, text)
      assert.equal(error.code, Code.FAILED_PRECONDITION)
      assert.match(error.message, why)
      assert.ok(error.message.startsWith(`${file}:${line}: `), `${error.message} for ${text}`)
      assert.doesNotMatch(error.message, /secret/)
      return true
    })
  }
})

test('bytes: a byte order mark is nothing, what is not UTF-8 is an error with its line', () => {
  assert.equal(parseHostsFile(Buffer.from('\ufeffserver = "https://a"\r\n'), file).server?.address.host, 'a')
  assert.throws(() => parseHostsFile(Buffer.from('server = "https://a"\n# caf\xe9\n', 'latin1'), file), (error) => error instanceof CriError && error.message.startsWith(`${file}:2: a character is not UTF-8`))
  for (const bytes of [Buffer.from('server = "https://a"\n', 'utf16le'), Buffer.from('\ufeffserver = "https://a"\n', 'utf16le'), Buffer.from('\ufeffserver = "https://a"\n', 'utf16le').swap16()]) {
    assert.throws(() => parseHostsFile(bytes, file), (error) => error instanceof CriError && error.message === `${file}:1: it is not a text in UTF-8 (UTF-16, perhaps): save the file in UTF-8`)
  }
})

test('IPv6 hosts, with and without a port and a scheme', () => {
  const { hosts } = parseHostsFile('[host."https://[FD00::1]:5000"]\n[host."[fd00::2]"]\n[host."http://[fd00::3]/v2/x"]\n[host."[::1]:5000"]', file)
  assert.deepEqual(hosts.map(({ address }) => [address.protocol, address.host, address.path]), [
    ['https', '[fd00::1]:5000', ''], ['https', '[fd00::2]', ''], ['http', '[fd00::3]', '/v2/x'], ['https-or-http', '[::1]:5000', ''],
  ])
})

test('what the root says about a server that is not named is warned about', () => {
  const { warnings } = parseHostsFile('capabilities = ["pull"]\noverride_path = true\nca = "x"\n[host."https://a/x?y=1"]\n', file)
  assert.deepEqual(warnings.map((warning) => /:(\d+): (\S+) /.exec(warning)?.slice(1)), [['4', 'host'], ['1', 'capabilities'], ['2', 'override_path']])
  assert.match(warnings.join(), /what follows \? or #/)
})

test('what stands in another table than was meant is warned about', () => {
  const { warnings, hosts } = parseHostsFile(`[host."https://a"]
  [host."https://a".header]
    x-team = "a"
  capabilities = ["pull"]
  dial_timeout = "5s"
[host.mirror.example]
  ca = "x"
[header]
  x = "1"
server = "https://b"
`, file)
  assert.deepEqual(hosts.map(({ address }) => address.host), ['a', 'mirror'])
  const expected = [
    [4, /header "capabilities".*setting of the host.*above the \[….header\] line/], [5, /header "dial_timeout"/], [6, /unknown key "example".*\[host\."mirror\.example"\]/], [10, /header "server"/],
  ] as const
  for (const [line, why] of expected) {
    assert.ok(warnings.some((warning) => warning.startsWith(`${file}:${line}: `) && why.test(warning)), `${line} ${why} in\n${warnings.join('\n')}`)
  }
  assert.equal(warnings.length, expected.length)
})

test('a misnamed table is warned about where it begins', () => {
  const { warnings } = parseHostsFile('server = "https://a"\n\n[hosts."https://b"]\n  capabilities = ["pull"]\n[mirrors."https://c".header]\n  x = "1"\n', file)
  assert.deepEqual(warnings.map((warning) => warning.replace(/is ignored; .*\[host\."https:\/\/mirror\.example"\]$/, '')), [`${file}:3: unknown key "hosts" `, `${file}:5: unknown key "mirrors" `])
  assert.equal(parseHostsFile('\n[host."https://b".header]\nx = "1"\n', file).hosts[0]?.line, 2)
})

test('what is odd but usable is warned about, with its line', () => {
  const { warnings, server, hosts } = parseHostsFile(`server = "https://docker.io"
capabilites = ["pull"]
[host."https://user:hunter2@mirror.example"]
skip-verify = true
server = "https://late.example"
[host."https://hub.docker.com"]
`, file)
  assert.equal(server?.address.host, 'registry-1.docker.io')
  assert.equal(hosts[0]?.address.host, 'mirror.example')
  assert.equal(hosts[1]?.address.host, 'registry-1.docker.io')
  const expected = [
    [1, /"https:\/\/docker\.io" serves no registry API; registry-1\.docker\.io is used/], [2, /"capabilites".*did you mean capabilities\?/],
    [3, /password in the URL are not used/], [4, /"skip-verify".*did you mean skip_verify\?/], [5, /"server".*above the first \[host/], [6, /registry-1/],
  ] as const
  for (const [line, why] of expected) {
    assert.ok(warnings.some((warning) => warning.startsWith(`${file}:${line}: `) && why.test(warning)), `${line} ${why} in\n${warnings.join('\n')}`)
  }
  assert.equal(warnings.length, expected.length)
  assert.doesNotMatch(warnings.join(), /hunter2/)
})
