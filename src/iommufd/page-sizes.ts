/** Which pages a domain has where: its windows may have pages of different sizes. */
import type { Aperture, PagingDomain } from "../iommu/driver.ts";
import { lowestBit } from "./placement.ts";

const smallestIn = ({ pageSizes }: PagingDomain, aperture: Aperture | undefined): bigint =>
  lowestBit(aperture?.pageSizes ?? pageSizes);

/** Bytes of the smallest page that the domain has in all of its apertures. */
export const coarsestPage = (domain: PagingDomain): bigint => {
  let coarsest = lowestBit(domain.pageSizes);
  for (const aperture of domain.apertures) {
    const smallest = smallestIn(domain, aperture);
    if (smallest > coarsest) coarsest = smallest;
  }
  return coarsest;
};

/** Whether it depends on the address how small pages can be. */
export const isGraded = (domain: PagingDomain): boolean =>
  domain.apertures.some((aperture) => smallestIn(domain, aperture) !== coarsestPage(domain));

/** Bytes of the smallest page that there is at an address; outside of the apertures that of the domain. */
export const smallestPageAt = (domain: PagingDomain, iova: number): bigint =>
  smallestIn(
    domain,
    domain.apertures.find(({ start, end }) => iova >= start && iova < end),
  );
