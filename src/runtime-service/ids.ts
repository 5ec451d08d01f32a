import { randomBytes } from 'node:crypto'

/** 64 hexadecimal digits, as every container runtime names its things. */
export function newId(): string {
  return randomBytes(32).toString('hex')
}
