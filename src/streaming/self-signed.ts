import { generateKeyPair, randomBytes, sign } from 'node:crypto'
import { isIP, SocketAddress } from 'node:net'
import { promisify } from 'node:util'
import { bits, field, integer, octets, oid, sequence, set, text, time, yes } from './der.ts'
import type { KeyPair } from './protocol.ts'

const ids = {
  ecdsaWithSha256: oid('1.2.840.10045.4.3.2'),
  commonName: oid('2.5.4.3'),
  basicConstraints: oid('2.5.29.19'),
  keyUsage: oid('2.5.29.15'),
  extKeyUsage: oid('2.5.29.37'),
  subjectAltName: oid('2.5.29.17'),
  serverAuth: oid('1.3.6.1.5.5.7.3.1'),
} as const
const digitalSignature = 0x80
/** Clocks of clients may be a little behind. */
const backdatedMs = 3_600_000
const dnsName = 2
const ipAddress = 7

/** A new P-256 key and a certificate for it that it has signed itself (RFC 5280), good for the names and addresses given, from now on for `validMs`. */
export async function selfSigned(commonName: string, names: readonly string[], validMs: number): Promise<KeyPair> {
  const { publicKey, privateKey } = await promisify(generateKeyPair)('ec', { namedCurve: 'P-256' })
  const now = Date.now()
  const name = sequence(set(sequence(ids.commonName, text(commonName))))
  const algorithm = sequence(ids.ecdsaWithSha256)
  const serial = randomBytes(16)
  // Positive, and never shorter than it says.
  serial[0] = 0x40 | ((serial[0] ?? 0) & 0x3f)
  const extensions = sequence(
    sequence(ids.basicConstraints, yes(), octets(sequence())),
    sequence(ids.keyUsage, yes(), octets(Buffer.from([0x03, 0x02, 0x07, digitalSignature]))),
    sequence(ids.extKeyUsage, octets(sequence(ids.serverAuth))),
    sequence(ids.subjectAltName, octets(sequence(...names.map(alternative)))),
  )
  const version3 = field(0, integer(Buffer.of(2)), true)
  const content = sequence(
    version3,
    integer(serial),
    algorithm,
    name,
    sequence(time(new Date(now - backdatedMs)), time(new Date(now + validMs))),
    name,
    publicKey.export({ type: 'spki', format: 'der' }),
    field(3, extensions, true),
  )
  const certificate = sequence(content, algorithm, bits(sign('sha256', content, privateKey)))
  const lines = certificate.toString('base64').replaceAll(/(.{64})/g, '$1\n').trimEnd()
  return {
    cert: `-----BEGIN CERTIFICATE-----\n${lines}\n-----END CERTIFICATE-----\n`,
    key: privateKey.export({ type: 'pkcs8', format: 'pem' }),
  }
}

function alternative(name: string): Buffer {
  return isIP(name) === 0 ? field(dnsName, Buffer.from(name, 'latin1'), false) : field(ipAddress, addressBytes(name), false)
}

function addressBytes(address: string): Buffer {
  if (isIP(address) === 4) return Buffer.from(address.split('.').map(Number))
  // Its printed form is the short one: written out again, group by group.
  const short = new SocketAddress({ address, family: 'ipv6' }).address
  const dotted = /^(.*:)(\d+)\.(\d+)\.(\d+)\.(\d+)$/.exec(short)
  const plain = dotted === null ? short : `${dotted[1]}${((Number(dotted[2]) << 8) | Number(dotted[3])).toString(16)}:${((Number(dotted[4]) << 8) | Number(dotted[5])).toString(16)}`
  const [head = '', tail] = plain.split('::')
  const groups = (part: string): string[] => part === '' ? [] : part.split(':')
  const [before, after] = [groups(head), groups(tail ?? '')]
  const zeros = Array.from({ length: 8 - before.length - after.length }, () => '0')
  return Buffer.from([...before, ...zeros, ...after].map((group) => group.padStart(4, '0')).join(''), 'hex')
}
