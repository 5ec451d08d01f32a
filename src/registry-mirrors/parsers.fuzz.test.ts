import assert from 'node:assert/strict'
import { test } from 'node:test'
import * as fc from 'fast-check'
import { Code, CriError } from '../errors/cri-error.ts'
import { parseChallenges } from './challenge.ts'
import { parseHostUrl } from './host-url.ts'
import { parseHostsFile } from './hosts-file.ts'
import { parseImageRef } from './image-ref.ts'

/** The same cases every time, so that a change is what makes a test fail; `FUZZ_SEED=$RANDOM` finds others. */
fc.configureGlobal({ seed: Number(process.env['FUZZ_SEED'] ?? 1) })

const file = '/etc/certs.d/reg.example/hosts.toml'
/** Found again with the seed and path that a failure prints. */
const runs = { numRuns: 3000, endOnFailure: true }

/** Throws nothing but a CriError that begins with file and line. */
function reads(text: string): void {
  try {
    const parsed = parseHostsFile(text, file)
    for (const warning of parsed.warnings) assert.match(warning, /^\/etc\/certs\.d\/reg\.example\/hosts\.toml:\d+: [^\n\r]+$/)
    for (const { line } of parsed.hosts) assert.ok(line >= 1)
  } catch (error) {
    if (error instanceof assert.AssertionError) throw error
    assert.ok(error instanceof CriError, `${String(error)} for ${JSON.stringify(text)}`)
    assert.equal(error.code, Code.FAILED_PRECONDITION)
    assert.match(error.message, /^\/etc\/certs\.d\/reg\.example\/hosts\.toml:\d+: [^\n\r]+$/)
    assert.ok(error.message.length < 600, error.message)
  }
}

const url = fc.oneof(
  fc.constantFrom('https://mirror.example', 'http://10.0.0.1:5000', '[fd00::1]:5000', 'https://u:p@h/v2?x#y', 'https://docker.io', '', 'https://', '://', 'http://[', 'h:99999', 'https://h/%zz', '__proto__', 'constructor'),
  fc.webUrl(), fc.string({ maxLength: 40 }),
)
const quoted = (text: string): string => JSON.stringify(text)
const value: fc.Arbitrary<string> = fc.oneof(
  fc.constantFrom('true', 'false', '1', '-0', '1e400', 'nan', '1979-05-27', '07:32:00', '[]', '{}', '""', '["pull", "resolve"]', '[["a", "b"], "c"]', '"5s"', '"-1ns"', '"9999999999h"', '[[[]]]', '{ a = { b = 1 } }', '"""\n"""', "'''x'''"),
  fc.string({ maxLength: 20 }).map(quoted), fc.array(fc.string({ maxLength: 8 }).map(quoted), { maxLength: 4 }).map((items) => `[${items.join(', ')}]`), fc.string({ maxLength: 10 }),
)
const key = fc.oneof(fc.constantFrom('server', 'capabilities', 'ca', 'client', 'skip_verify', 'header', 'override_path', 'dial_timeout', 'host', 'a.b', '"host"."x"', 'header.x', '__proto__', '"__proto__"', 'host.__proto__'), fc.string({ maxLength: 8 }).map(quoted))
const line = fc.oneof(
  fc.tuple(key, value).map(([name, item]) => `${name} = ${item}`),
  url.map((name) => `[host.${quoted(name)}]`), url.map((name) => `[host.${quoted(name)}.header]`), url.map((name) => `[host.'${name}']`),
  fc.constantFrom('[host]', '[[host]]', '[header]', '[]', '[', '# comment', '', '[__proto__]', '[host."__proto__"]', '\r', '\t'),
)

test('any text is a hosts.toml or a broken one, by file and line', () => {
  fc.assert(fc.property(fc.oneof(fc.string({ unit: 'binary' }), fc.string({ unit: 'grapheme' }), fc.uint8Array().map((bytes) => Buffer.from(bytes).toString('latin1'))), reads), runs)
})

test('lines of a hosts.toml in any order and with any value', () => {
  fc.assert(fc.property(fc.array(line, { maxLength: 12 }), (lines) => reads(lines.join('\n'))), runs)
})

test('a good file with a few characters changed', () => {
  const good = `server = "https://reg.example"\ncapabilities = ["pull"]\n[header]\nx = ["1"]\n[host."https://a.example"]\nca = ["x.crt"]\nclient = [["a", "b"]]\nskip_verify = false\ndial_timeout = "1s"\n[host."https://a.example".header]\ny = "2"\n`
  const edit = fc.record({ at: fc.nat(good.length), remove: fc.nat(6), insert: fc.string({ maxLength: 4 }) })
  fc.assert(fc.property(fc.array(edit, { minLength: 1, maxLength: 4 }), (edits) => {
    reads(edits.reduce((text, { at, remove, insert }) => text.slice(0, at) + insert + text.slice(at + remove), good))
  }), runs)
})

test('what would keep a careless parser busy', () => {
  const many = 20_000
  const texts = [
    '['.repeat(many), `a = ${'['.repeat(many)}`, `a = ${'[1,'.repeat(many)}`, `a = ${'{b='.repeat(many)}`, `${'a.'.repeat(many)}b = 1`, `[${'a.'.repeat(many)}b]`, `server = "${'x'.repeat(many)}"`, `server = "${'/'.repeat(many)}"`,
    `server = "https://${'@'.repeat(many)}"`, `server = "https://${'a:'.repeat(many)}"`, '\n'.repeat(many), '# x\n'.repeat(many), `dial_timeout = "${'1'.repeat(many)}s"`, `dial_timeout = "${'1s'.repeat(many)}"`, `[header]\nx = "${' '.repeat(many)}"`,
    Array.from({ length: 2000 }, (_, index) => `[host."https://h${index}"]`).join('\n'), `capabilities = [${'"pull",'.repeat(many)}]`, `x = """${'"" '.repeat(many)}"""`, `${'x'.repeat(many)} = 1`, `server = "ftp://${'y'.repeat(many)}"`, `ca = ${'"'.repeat(many)}`,
  ]
  for (const text of texts) reads(text)
})

test('any text is an address of a host or is not', () => {
  fc.assert(fc.property(fc.oneof(url, fc.string({ unit: 'binary' })), (text) => {
    const address = parseHostUrl(text)
    if (typeof address === 'string') return
    assert.ok(['https', 'http', 'https-or-http'].includes(address.protocol))
    assert.ok(URL.canParse(`https://${address.host}${address.path}/v2/x`), JSON.stringify([text, address]))
    assert.ok(!address.host.includes('@') && !/[?#\s]/.test(address.path), JSON.stringify([text, address]))
  }), runs)
})

const part = fc.string({ unit: fc.constantFrom('a', 'b', 'z', '0', '1', '9', '.', '_', '-'), minLength: 1, maxLength: 8 })
const reference = fc.tuple(fc.option(fc.constantFrom('docker.io', 'index.docker.io', 'localhost', 'localhost:5000', 'reg.example', 'reg.example:0', '[fd00::1]:5000', '[fd00::1]', 'UPPER', 'a.b:99999')), fc.array(part, { minLength: 1, maxLength: 4 }),
  fc.option(part), fc.option(fc.constantFrom(`sha256:${'0'.repeat(64)}`, 'sha256:abc', `sha512:${'f'.repeat(128)}`, `md5:${'0'.repeat(32)}`, '')))
  .map(([host, parts, tag, digest]) => `${host === null ? '' : `${host}/`}${parts.join('/')}${tag === null ? '' : `:${tag}`}${digest === null ? '' : `@${digest}`}`)

test('any text is an image name, and its canonical form the name of the same image, or it is refused in words', () => {
  fc.assert(fc.property(fc.oneof(reference, fc.string({ unit: 'binary' }), fc.string()), (text) => {
    let ref
    try {
      ref = parseImageRef(text)
    } catch (error) {
      assert.ok(error instanceof CriError && error.code === Code.INVALID_ARGUMENT, `${String(error)} for ${JSON.stringify(text)}`)
      assert.ok(error.message.length < 2000 && !/\n/.test(error.message))
      return
    }
    assert.deepEqual({ ...parseImageRef(ref.toString()), toString: 0 }, { ...ref, toString: 0 }, JSON.stringify(text))
    assert.equal(parseImageRef(ref.familiar).toString(), ref.toString(), JSON.stringify(text))
    assert.ok((ref.tag === undefined) !== (ref.digest === undefined))
    assert.ok(URL.canParse(`https://reg.example/v2/${ref.repository}`))
    assert.ok(!/[\s?#%\\]|\.\.\/|\/\.\.?\//.test(`${ref.name}/`), ref.name)
  }), runs)
  for (const text of ['a/'.repeat(20_000), `${'a'.repeat(20_000)}!`, `a${'-'.repeat(20_000)}!`, `${'a-'.repeat(20_000)}!`, `a.b${'.c'.repeat(20_000)}/x_`, `x:${'y'.repeat(20_000)}`, `x@${'sha256:'.repeat(5000)}`, `[${':'.repeat(20_000)}/x`]) assert.throws(() => parseImageRef(text), CriError)
})

const challenge = fc.tuple(fc.constantFrom('Bearer', 'basic', 'Digest', 'X', ''), fc.array(fc.tuple(fc.constantFrom('realm', 'service', 'scope', 'REALM', '__proto__', 'constructor', 'toString', ''), fc.oneof(fc.string().map(quoted), fc.string({ maxLength: 10 }))), { maxLength: 4 }), fc.constantFrom(',', ', ', ' ', ',,'))
  .map(([scheme, parameters, separator]) => `${scheme} ${parameters.map(([name, item]) => `${name}=${item}`).join(separator)}`)

test('any WWW-Authenticate is read, its parameters as they were written', () => {
  fc.assert(fc.property(fc.array(fc.oneof(challenge, fc.string({ unit: 'binary' }), fc.string()), { maxLength: 4 }), (headers) => {
    for (const { scheme, parameters } of parseChallenges(headers)) {
      assert.match(scheme, /^[^\s"=,A-Z]+$/)
      for (const [name, item] of Object.entries(parameters)) assert.ok(name === name.toLowerCase() && typeof item === 'string')
      assert.equal(Object.getPrototypeOf(parameters), Object.prototype)
    }
  }), runs)
  fc.assert(fc.property(fc.string(), fc.string(), (realm, service) => {
    const escaped = (text: string): string => `"${text.replace(/["\\]/g, '\\$&')}"`
    const [read] = parseChallenges([`Bearer realm=${escaped(realm)}, service=${escaped(service)}`])
    assert.deepEqual(read, { scheme: 'bearer', parameters: { realm, service } })
  }), runs)
  const many = 20_000
  for (const text of [','.repeat(many), 'a '.repeat(many), 'a='.repeat(many), `Bearer realm="${'\\'.repeat(many)}`, `Bearer realm="${'a'.repeat(many)}`, 'Bearer a=b,'.repeat(many), ' '.repeat(many), `Bearer ${' ='.repeat(many)}`]) parseChallenges([text])
})
