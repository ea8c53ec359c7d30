/* kvferry doctor: looks at this machine, the configuration and the daemon, and
 * says what is wrong and what to do. Changes nothing. */
#include "doctor.h"

#include <stdlib.h>

static void check_config(struct doctor *d, const struct cli *c)
{
    unsigned errors = 0;

    kvf_conf_defaults(d->conf);
    d->conf_given = c->config != NULL;
    if (!d->conf_given)
        return;
    if (kvf_conf_load(d->conf, c->config, stderr, &errors) == 0) {
        doctor_say(d, DOCTOR_OK, "config", NULL, "%s is valid", c->config);
        return;
    }
    doctor_say(d, DOCTOR_FAIL, "config", "correct the lines named above",
               "%s: %u errors", c->config, errors);
    kvf_conf_defaults(d->conf);
    d->conf_given = false;
}

int cli_doctor(struct cli *c, int argc, char **argv)
{
    static const struct option options[] = {
        {"json", no_argument, NULL, 1},
        {"peer", required_argument, NULL, 2},
        {0}};
    struct doctor d = {.json = false};
    char peer[256] = "";
    uint16_t port = 0;
    struct kvf_why why;
    int code;

    while ((code = cli_getopt(c, argc, argv, "", options)) != -1) {
        if (code == '?')
            return CLI_USAGE;
        d.json |= code == 1;
        if (code == 2 && !cli_host_port(optarg, peer, sizeof peer, &port))
            return cli_usage(c, "bad value %s", optarg);
    }
    if (argc != optind)
        return cli_usage(c, "takes no argument");
    d.conf = malloc(sizeof *d.conf);
    if (d.conf == NULL)
        return CLI_IO;
    check_config(&d, c);
    if (d.conf_given && c->endpoint == NULL) {
        if (kvf_conf_endpoint(d.conf->engine_endpoint, d.conf->cluster,
                              &d.conf->self, false, d.endpoint,
                              sizeof d.endpoint, &why) != 0)
            doctor_say(&d, DOCTOR_FAIL, "endpoint", "set engine_endpoint", "%s",
                       why.text);
    } else {
        c->config = NULL; /* already reported */
        cli_endpoint(c, d.endpoint, sizeof d.endpoint);
    }
    doctor_network(&d); /* first: a pool that exists needs no room */
    doctor_machine(&d);
    doctor_verbs(&d);
    if (port != 0)
        doctor_peer(&d, peer, port);
    if (!d.json)
        printf("%u ok, %u warn, %u FAIL\n", d.found[DOCTOR_OK],
               d.found[DOCTOR_WARN], d.found[DOCTOR_FAIL]);
    free(d.conf);
    return d.found[DOCTOR_FAIL] > 0;
}
