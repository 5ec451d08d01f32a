import assert from 'node:assert/strict'
import { test } from 'node:test'
import { proxyFor } from './proxy.ts'

const HTTPS_PROXY = 'http://proxy.example:3128'

test('the proxy of the scheme, from either spelling, with http:// assumed', () => {
  const env = { HTTP_PROXY: 'plain.example:1', https_proxy: HTTPS_PROXY }
  assert.equal(proxyFor(new URL('https://reg.example/v2'), env), HTTPS_PROXY)
  assert.equal(proxyFor(new URL('http://reg.example/v2'), env), 'http://plain.example:1')
  assert.equal(proxyFor(new URL('https://reg.example/v2'), { HTTP_PROXY: 'x' }), undefined)
  assert.equal(proxyFor(new URL('https://reg.example/v2'), {}), undefined)
  for (const host of ['localhost', '127.0.0.1:5000', '127.8.8.8', '[::1]:5000']) assert.equal(proxyFor(new URL(`https://${host}/`), env), undefined, host)
})

test('NO_PROXY by Go’s rules', () => {
  const cases: readonly (readonly [string, string, boolean])[] = [
    ['*', 'reg.example', true],
    ['example.com', 'example.com', true], ['example.com', 'www.example.com', true], ['example.com', 'notexample.com', false],
    ['.example.com', 'www.example.com', true], ['.example.com', 'example.com', false], ['*.example.com', 'a.example.com', true],
    ['EXAMPLE.com', 'Example.COM', true], ['a, example.com ,b', 'example.com', true],
    ['example.com:443', 'example.com', true], ['example.com:8443', 'example.com', false], ['example.com:8443', 'example.com:8443', true],
    ['10.0.0.0/8', '10.1.2.3:5000', true], ['10.0.0.0/8', '11.1.2.3', false], ['10.0.0.0/8', 'ten.example', false], ['10.0.0.1', '10.0.0.1', true], ['10.0.0.1:5000', '10.0.0.1', false],
    ['fd00::/8', '[fd12::1]:5000', true], ['fd00::1', '[fd00::1]', true], ['fd00::1', '[fd00::2]', false], ['[fd00::1]:443', '[fd00:0::1]', true],
    ['10.0.0.0/99', '10.0.0.1', false], [',,', 'reg.example', false],
  ]
  for (const [NO_PROXY, host, exempt] of cases) {
    assert.equal(proxyFor(new URL(`https://${host}/v2`), { HTTPS_PROXY, NO_PROXY }) === undefined, exempt, `${NO_PROXY} for ${host}`)
  }
})
